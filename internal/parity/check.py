"""Runs checks of internal/golden, many in one process.

    check.py < LINES     a line is a JSON list: ["check_adapter", ARGUMENT...], or check_merged, check_quantised or check_nf4_loss

All are run; the exit code is 1 if one failed or there was none.
"""
import json
import pathlib
import sys
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "golden"))
import check_adapter
import check_merged
import check_nf4_loss
import check_quantised

PROGRAMS = {"check_adapter": check_adapter.main, "check_merged": check_merged.main, "check_quantised": check_quantised.main,
            "check_nf4_loss": check_nf4_loss.main}


def check(name, arguments):
    """Whether the program ended well."""
    sys.argv = [name, *arguments]
    try:
        PROGRAMS[name]()
    except SystemExit as end:
        if end.code:
            print(f"FAILED: {name} {' '.join(arguments)}\n{end.code}", flush=True)
        return not end.code
    except Exception:  # what a check did not foresee must not keep the others from running
        print(f"FAILED: {name} {' '.join(arguments)}\n{traceback.format_exc()}", flush=True)
        return False
    return True


if __name__ == "__main__":
    results = [check(name, arguments) for name, *arguments in map(json.loads, sys.stdin)]
    print(f"{len(results)} checks, {results.count(False)} failed")
    raise SystemExit(0 if results and all(results) else 1)
