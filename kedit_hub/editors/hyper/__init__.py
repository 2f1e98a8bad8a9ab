"""Editors that are trained: a small network reads the gradient of an edit and writes the change of the weights.

KE, MEND, InstructEdit, DAFNet, MALMEN, RLEdit     one file each; `train.py` trains them, `trained.py` is what is saved and shared
"""
