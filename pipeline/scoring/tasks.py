"""The tasks by name."""

from __future__ import annotations

from pipeline.scoring import gsm8k, humaneval, math500, mbpp, word_problems, word_sheets
from pipeline.scoring.task import Task

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK
    for module in (gsm8k, math500, humaneval, mbpp, word_problems, word_sheets)
}


def task_named(name: str) -> Task:
    """The task; ValueError with the known names for an unknown one."""
    if name not in TASKS:
        raise ValueError(f"task {name!r} is unknown; choose {', '.join(TASKS)}")
    return TASKS[name]
