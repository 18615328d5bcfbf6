"""Scripted failure runs: the service under steady load while something around it breaks, and what its users notice.

A run starts the service and whatever it leans on as processes of its own, offers scheduled load before, during and
after one trouble, and holds every answer against what its user did. Nothing else on the machine is touched.

    people      who asks: each user's history is a code word, so that an answer shows whose history it was made from
    exchanges   requests that leave when they are due, and everything that came of them
    verdicts    each answer judged, after the run, against what had been sent and acknowledged when it was made
    figures     before, during and after: latency, goodput, degradation, recovery, loss
    servers     the service, Redis, and their ends
    proxy       a line between the service and Redis that can be cut, slowed and torn
    clock       the service with a wall clock that can be set
    copies      bundles that fail on some histories, are broken, or differ in name alone
    scenarios   the troubles, and what has to hold in each
    command     `python -m loadtests faults`
"""
