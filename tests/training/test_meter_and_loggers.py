"""Numbers on their way to the metrics file, and loggers that never ask."""

import csv

import pytest
import torch

from stable_audio_tools.training.loggers import MetricsFile, create_loggers, wandb_is_configured
from stable_audio_tools.training.meter import Counted, MetricMeter


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_meter_means_each_name_over_its_own_count():
    meter = MetricMeter()
    meter.add({"a": torch.tensor(1.0), "b": torch.tensor(5.0)})
    meter.add({"a": torch.tensor(2.0)})
    assert meter.pop() == {"a": 1.5, "b": 5.0}
    assert meter.pop() == {}


def test_a_mean_over_examples_is_that_of_all_of_them_and_left_out_where_there_was_none():
    meter = MetricMeter()
    for total, count in ((6.0, 3), (0.0, 0), (2.0, 1)):
        meter.add({"a": Counted(torch.tensor(total), torch.tensor(count)), "loss": torch.tensor(total)})
    meter.add({"never": Counted(torch.tensor(0.0), torch.tensor(0))})
    assert meter.pop() == {"a": 2.0, "loss": pytest.approx(8 / 3)}


def test_new_metrics_become_columns_and_one_step_is_one_row(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"train/loss": 1.0}, step=10)
    log.log_metrics({"train/loss": 0.5}, step=20)
    log.log_metrics({"val/loss": 0.7}, step=20)
    found = rows(log.path)
    assert [row["step"] for row in found] == ["10", "20"]
    assert found[0]["val/loss"] == "" and found[1] == {**found[1], "train/loss": "0.5", "val/loss": "0.7"}
    assert list(found[0])[:2] == ["step", "time_s"]


def test_a_resumed_run_keeps_history_up_to_its_step_and_goes_on_in_time(tmp_path):
    first = MetricsFile(tmp_path / "metrics.csv")
    for step in (10, 20, 30):
        first.log_metrics({"train/loss": float(step)}, step=step)
    (tmp_path / "metrics.csv").open("a").write("40,")  # torn by a kill
    second = MetricsFile(tmp_path / "metrics.csv", resume_step=20)
    second.log_metrics({"train/loss": 21.0}, step=30)
    found = rows(second.path)
    assert [row["train/loss"] for row in found] == ["10.0", "20.0", "21.0"]
    assert float(found[2]["time_s"]) >= float(found[1]["time_s"])


@pytest.mark.parametrize(
    ("environment", "configured"),
    [
        ({}, False),
        ({"WANDB_API_KEY": "k"}, True),
        ({"WANDB_MODE": "offline"}, True),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}, False),
    ],
)
def test_auto_uses_wandb_only_where_it_cannot_ask(monkeypatch, tmp_path, environment, configured):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text("")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_is_configured() is configured
    if not configured:
        assert len(create_loggers("auto", tmp_path, name="n", project="p", config={})) == 1


def test_a_netrc_entry_is_an_account(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_is_configured()
