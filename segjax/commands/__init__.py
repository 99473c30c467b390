"""Commands: one module per verb, with a function of the verb's name; here shelves meet.

Here belongs what a person starts: it reads options, calls the other packages, writes to the run
folder, and tells mistakes in one line. `command` is what surrounds every verb, `run` the run
folder, `trained` what a run has trained, `step` a recipe's training step. Not here: anything that a
program would import to build on; that takes its arguments from the packages beside this one.
"""
