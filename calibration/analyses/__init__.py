"""What a referee, a sceptic and an operator would ask of a gate that was found, one file a question.

Each such file holds its frozen model of numbers, what they claim, how they are measured and their section of the
report, and names these as `ANALYSIS`; `registry.py` finds it there, and nothing else names one. To add an analysis,
write a file; to remove it, delete the file. The files without an `ANALYSIS` are what several analyses share.
"""
