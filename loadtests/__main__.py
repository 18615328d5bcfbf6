"""`python -m loadtests VERB`: each verb is a module, imported when it is asked for."""

import importlib
import sys
from collections.abc import Sequence

from loadtests.target import LoadError

VERBS = {
    "stages": ("stages", "what each stage of a request costs, above the floor; and beside a plain endpoint"),
    "beams": ("beams", "what constrained beam search costs beside the model, and how often its lists are exact"),
    "rankings": ("rankings", "what the ranking stage costs: its parts, by candidates, and one ranker beside another"),
    "generators": ("generators", "a generator behind the service on one core, beside the dense encoder"),
    "open-loop": ("open_loop", "latency at an offered rate, counted from when each request was due"),
    "faults": ("faults.command", "scripted failures under load: what users notice, what is lost, how soon all is well"),
    "replay": ("replay", "held-out users over HTTP: quality and latency of the answers that are served"),
    "compare": ("comparison", "beside a plain service on the same bundle: the highest rate that each keeps"),
    "fuzz": ("fuzz", "requests that nobody should send, by the hundred thousand: each is answered rightly"),
    "pairs": ("pairs", "an event through one process, the question through another: no answer is stale"),
    "soak": ("soak", "memory after many swaps and many requests, and latency during swaps"),
    "diff": ("diff", "two results side by side"),
    "check": ("objectives", "whether a result meets objectives"),
}
REFUSED = 2  # exit status: nothing was measured


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("python -m loadtests VERB [--help]\n")
        print("\n".join(f"  {verb:<10} {what}" for verb, (_, what) in VERBS.items()))
        print("\nLocust: locust -f loadtests/locustfile.py --host http://127.0.0.1:8000")
        return 0
    if arguments[0] not in VERBS:
        sys.stderr.write(f"there is no verb {arguments[0]!r}; there are {', '.join(VERBS)}\n")
        return REFUSED
    module = importlib.import_module(f"loadtests.{VERBS[arguments[0]][0]}")
    try:
        status: int = module.main(arguments[1:])
    except LoadError as error:
        sys.stderr.write(f"{error}\n")
        return REFUSED
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
