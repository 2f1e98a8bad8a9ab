"""READING RECORDS: the shapes in which the field publishes edits. Law: what a file says is read, named as rejected, or
named as left out; nothing is dropped in silence.

    read.py (files) · shapes.py (the table of shapes) · extras.py (what a record says beside its edit)
    values.py, probes.py (pieces that all shapes share) · one file per family of shapes
"""
