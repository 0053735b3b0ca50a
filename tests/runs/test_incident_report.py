"""What is written down of steps that went wrong has a limit; what stands in it is tested with training."""

from types import SimpleNamespace

from kerasllm.run_directory import RunDirectory
from kerasllm.runs import incident_report


def test_of_very_many_steps_the_later_ones_are_not_written_down(tmp_path, monkeypatch):
    """Where the policy is to leave steps out, there may be one after the other for hours."""
    directory = RunDirectory(tmp_path)
    for step in range(incident_report.MAX_INCIDENTS):
        directory.write_incident(step, 1, {})
    monkeypatch.setattr(incident_report, "is_chief", lambda strategy: True)
    plan = SimpleNamespace(locate=lambda step: (0, step), epoch_starts=[0])
    run = SimpleNamespace(directory=directory, strategy=None, plan=plan)
    assert "this one is not written down" in incident_report.describe_step(run, 1, 999, "loss is nan", {})
    assert len(list(directory.incidents_path.iterdir())) == incident_report.MAX_INCIDENTS
