"""`python train.py --model-config x.json` is `stable-audio-tools train --model-config x.json`."""

import sys

from stable_audio_tools.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
