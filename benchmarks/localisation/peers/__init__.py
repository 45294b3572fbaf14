"""Other ways of lowering harm, written from their papers and compared on the same requests within the same budget.

Each gives candidates of increasing strength; which one is used is chosen on validation requests by the objective that
our own search minimises (`contender.py`). All of them only ever lead towards refusal: none takes refusal away.
"""
