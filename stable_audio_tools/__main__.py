"""`python -m stable_audio_tools` is the console script `stable-audio-tools`."""

import sys

from stable_audio_tools.cli.main import main

sys.exit(main())
