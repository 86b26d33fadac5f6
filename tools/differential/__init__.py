"""Whole configurations of the engine, run with and without patches and compared.

`tools/matrix.py` is the command line, and `tests/matrix` the tests. What happens to one
configuration, in the order of the modules:

    configuration   what a run is: engine, requests, what happens between steps, who else is there
    drawing         Hypothesis strategies of configurations that the installed release can have
    serving         which requests can never be served
    selections      put a selection of patches in force, and take it back
    company         what else is in the process
    running         run the real engine, and note what a caller can see
    draws           what sampling has to draw from, and what it drew
    observing       the notes: a plain record, and a trace for the oracles
    comparing       where two records differ
    oracles         what is wrong with a record, whoever made it
    defects         what is known to be wrong with a release, recognised by its cause
    intended        what patches change although the release was right, recognised by its cause
    judging         which runs to compare, what may differ, and which patch is to blame
    searching       draw, judge and shrink
    report          how much was run
"""
