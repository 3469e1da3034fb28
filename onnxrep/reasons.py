"""Why something was left alone: a stable code for each refusal, and what it means."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "attribute": "",
}
