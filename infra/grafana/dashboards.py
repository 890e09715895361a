"""Grafana's dashboards, made from code: `python infra/grafana/dashboards.py [--check]` writes `dashboards/*.json`.

What one process measures for the whole installation is read with `max`, everything else with `sum`.
"""

import json
import sys
from pathlib import Path

from panels import Panel, dashboard, job_variable, number, row, series

TARGET = Path(__file__).resolve().parent / "dashboards"
_RATE = "[$__rate_interval]"
_REQUESTS = "http_server_request_duration_seconds"
_NO_PROBE = 'http_route!~"/healthz|/readyz"'


def _quantile(share: float, metric: str, *by: str, window: str = _RATE) -> str:
    labels = ", ".join(("le", *by))
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{window})))"


def _per_second(metric: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) (rate({metric}{_RATE}))" if by else f"sum(rate({metric}{_RATE}))"


def _in_an_hour(metric: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) (increase({metric}[1h]))" if by else f"sum(increase({metric}[1h]))"


def _failed_share(window: str) -> str:
    failed = f'sum(rate({_REQUESTS}_count{{{_NO_PROBE}, http_response_status_code=~"5.."}}{window}))'
    return f"({failed} or vector(0)) / sum(rate({_REQUESTS}_count{{{_NO_PROBE}}}{window}))"


def _classes() -> str:
    rate = f"rate({_REQUESTS}_count{_RATE})"
    return f'sum by (class) (label_replace({rate}, "class", "${{1}}xx", "http_response_status_code", "(.).."))'


def _health() -> list[Panel]:
    return [
        row("Is all well?"),
        number("Active schedulers", "sum(luthier_scheduler_active) or vector(0)", bad_below=1),
        number("Oldest fact not yet seen", "max(luthier_outbox_age_seconds)", unit="s", bad_above=60),
        number("Requests that fail", _failed_share("[5m]"), unit="percentunit", bad_above=0.05),
        number("Dead letters in an hour", _in_an_hour("luthier_dead_letters_total"), bad_above=1),
        number(
            "Alarms of the journal in an hour",
            _in_an_hour('luthier_audit_findings_total{what!="late"}'),
            bad_above=1,
        ),
        number(
            "Least room on a disk",
            "min(luthier_disk_free_bytes / luthier_disk_size_bytes)",
            unit="percentunit",
            bad_below=0.15,
        ),
    ]


def _jobs() -> list[Panel]:
    return [
        row("Jobs"),
        series("Jobs by phase", ("max by (phase) (luthier_jobs)", "{{phase}}"), stacked=True),
        series("Jobs ended in an hour", (_in_an_hour("luthier_jobs_finished_total", "status"), "{{status}}")),
        series("Jobs created in an hour", (_in_an_hour("luthier_jobs_created_total"), "created")),
        series(
            "Wait for slots",
            (_quantile(0.5, "luthier_queue_wait_seconds", window="[1h]"), "median"),
            (_quantile(0.95, "luthier_queue_wait_seconds", window="[1h]"), "95 %"),
            unit="s",
        ),
        series(
            "Duration of attempts (median)",
            (_quantile(0.5, "luthier_run_duration_seconds", "outcome", window="[1h]"), "{{outcome}}"),
            unit="s",
        ),
        series(
            "From creation to the end (median)",
            (_quantile(0.5, "luthier_job_duration_seconds", "status", window="[1h]"), "{{status}}"),
            unit="s",
        ),
    ]


def _api() -> list[Panel]:
    slowest = f"topk(10, {_quantile(0.99, _REQUESTS, 'http_route')})"
    refused = f'{_REQUESTS}_count{{http_response_status_code=~"[45].."}}'
    failed = _per_second(refused, "http_route", "http_response_status_code")
    return [
        row("API"),
        series("Requests by class", (_classes(), "{{class}}"), unit="reqps", stacked=True),
        series("Slowest routes (99 %)", (slowest, "{{http_route}}"), unit="s", about="A stream lasts to its end."),
        series("Errors by route", (failed, "{{http_response_status_code}} {{http_route}}"), unit="reqps"),
    ]


def _journal() -> list[Panel]:
    return [
        row("Journal: from a commit to the event list"),
        series("Facts in outboxes", ("max by (kind) (luthier_outbox_depth)", "{{kind}}")),
        series("Age of the oldest fact", ("max by (kind) (luthier_outbox_age_seconds)", "{{kind}}"), unit="s"),
        series("Records not yet in the list", ("sum by (topic) (luthier_projector_lag)", "{{topic}}")),
        series(
            "From commit to visible",
            (_quantile(0.5, "luthier_projector_delay_seconds"), "median"),
            (_quantile(0.99, "luthier_projector_delay_seconds"), "99 %"),
            unit="s",
        ),
        series("Facts published", (_per_second("luthier_relay_published_total", "topic"), "{{topic}}"), unit="cps"),
        series("Dead letters", (_in_an_hour("luthier_dead_letters_total", "topic"), "{{topic}}")),
    ]


def _rooms() -> list[Panel]:
    return [
        row("Rooms"),
        series("Instances that announced themselves", ("max by (room) (luthier_rooms)", "{{room}}")),
        series(
            "Scheduler's cycle",
            (_quantile(0.99, "luthier_scheduler_cycle_seconds"), "99 %"),
            (_quantile(0.5, "luthier_scheduler_cycle_seconds"), "median"),
            unit="s",
        ),
        series("Rows validated", (_per_second("luthier_validator_rows_total", "verdict"), "{{verdict}}"), unit="cps"),
    ]


def operations() -> Panel:
    """For whoever is on call."""
    panels = [*_health(), *_jobs(), *_api(), *_journal(), *_rooms()]
    return dashboard("luthier-operations", "Luthier: operations", "Whether all is well, and where not.", panels)


def _of_job(metric: str) -> str:
    return f'max by (job_id) ({metric}{{job_id=~"$job_id"}})'


def job() -> Panel:
    """One job, or several beside each other, while they run."""
    progress = f"{_of_job('luthier_train_step')} / {_of_job('luthier_train_total_steps')}"
    panels = [
        series("Training loss", (_of_job("luthier_train_loss"), "{{job_id}}"), width=12),
        series("Validation loss", (_of_job("luthier_train_valid_loss"), "{{job_id}}"), width=12),
        series("Token accuracy", (_of_job("luthier_train_accuracy"), "{{job_id}}"), unit="percentunit", width=12),
        series("Progress", (progress, "{{job_id}}"), unit="percentunit", width=12),
        series("Tokens read per second", (_of_job("luthier_train_token_rate"), "{{job_id}}"), width=12),
        series("Time of a step", (_of_job("luthier_train_step_time_seconds"), "{{job_id}}"), unit="s", width=12),
        series("Learning rate", (_of_job("luthier_train_learning_rate"), "{{job_id}}"), unit="sci", width=12),
        series("Attempt", (_of_job("luthier_train_attempt"), "{{job_id}}"), width=12),
    ]
    about = "Running jobs. The whole series of a job is its result file; its event list says what happened."
    variable = job_variable("label_values(luthier_train_attempt, job_id)")
    return dashboard("luthier-job", "Luthier: one job", about, panels, variable)


def _slots() -> list[Panel]:
    used = 'sum(max by (node) (luthier_slots{state="used"}))'
    return [
        row("Slots"),
        number("Slots in use", f"{used} / sum(max by (node, state) (luthier_slots))", unit="percentunit"),
        number("Free slots", 'sum(max by (node) (luthier_slots{state="free"}))'),
        number("Jobs that wait", 'max(luthier_jobs{phase="waiting"})'),
        number("The first has waited", "max(luthier_queue_oldest_seconds)", unit="s"),
        number("Live trainer nodes", 'max(luthier_nodes{role="trainer", phase="live"})', bad_below=1),
        number("Lost nodes", 'sum(max by (role) (luthier_nodes{phase="lost"}))', bad_above=1),
        series("Slots used by node", ('max by (node, device) (luthier_slots{state="used"})', "{{node}} ({{device}})")),
        series("Slots free by node", ('max by (node, device) (luthier_slots{state="free"})', "{{node}} ({{device}})")),
        series("Placements in an hour", (_in_an_hour("luthier_jobs_placed_total"), "placements")),
    ]


def _throughput() -> list[Panel]:
    return [
        row("Throughput"),
        series("Tokens trained per second", (_per_second("luthier_train_tokens_total"), "trained")),
        series(
            "Tokens generated per second",
            (_per_second("luthier_inference_tokens_total", "luthier_base"), "{{luthier_base}}"),
        ),
        series(
            "Saving a checkpoint",
            (_quantile(0.5, "luthier_checkpoint_save_seconds", window="[1h]"), "median"),
            (_quantile(0.95, "luthier_checkpoint_save_seconds", window="[1h]"), "95 %"),
            unit="s",
        ),
    ]


def _storage() -> list[Panel]:
    room = "min by (service_name, disk) (luthier_disk_free_bytes / luthier_disk_size_bytes)"
    return [
        row("Storage"),
        series("Bytes of objects", ("max(luthier_objects_size_bytes)", "bytes"), unit="bytes"),
        series(
            "Checkpoints kept per second", (_per_second("luthier_checkpoint_saved_bytes_total"), "bytes"), unit="Bps"
        ),
        series("Room on disks", (room, "{{service_name}} {{disk}}"), unit="percentunit"),
    ]


def capacity() -> Panel:
    """For whoever decides what to buy."""
    panels = [*_slots(), *_throughput(), *_storage()]
    return dashboard("luthier-capacity", "Luthier: capacity", "What there is, what is used, what waits.", panels)


DASHBOARDS = {"operations": operations, "job": job, "capacity": capacity}


def main(arguments: list[str]) -> int:
    """Write all, or with --check write nothing and fail where one is out of date."""
    is_check, stale = "--check" in arguments, []
    for name, make in DASHBOARDS.items():
        path, text = TARGET / f"{name}.json", json.dumps(make(), indent=2, ensure_ascii=False) + "\n"
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path)
        if not is_check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    for path in stale:
        sys.stdout.write(f"{'out of date' if is_check else 'written'}: infra/grafana/dashboards/{path.name}\n")
    return 1 if is_check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
