"""The docstrings under the fields of a dataclass, read from its source."""

import ast
import inspect


def field_docs(options: type) -> dict[str, str]:
    """Field name -> the string literal right under the field, on one line.

    Parses the class's source, about a millisecond: for --help and the flag page, not for a training run.
    """
    body = ast.parse(inspect.getsource(options)).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: " ".join(doc.value.value.split())
        for field, doc in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(doc, ast.Expr)
        and isinstance(doc.value, ast.Constant)
        and isinstance(doc.value.value, str)
    }
