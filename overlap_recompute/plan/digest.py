"""What tells plans apart: a digest of all that a plan decides and promises."""

import dataclasses
import hashlib
import json

from overlap_recompute.plan.codec import from_data, to_text
from overlap_recompute.plan.plan_file import Plan


def plan_digest(plan: Plan) -> str:
    """Hexadecimal SHA-256 of a plan without the time it was made at.

    A plan in memory and the same plan read from its file agree, whatever the file's spaces and order of fields.
    """
    # Through the reader: a whole number in a field of floats is written as the reader takes it.
    plain = from_data(json.loads(to_text(dataclasses.replace(plan, created=""))), Plan, plan.version, "the plan")
    text = json.dumps(dataclasses.asdict(plain), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
