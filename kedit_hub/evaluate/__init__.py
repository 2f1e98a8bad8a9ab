"""MEASURING: what an edit did, and what it broke. Law: nothing here knows which editor made what it measures, numbers
of two protocols never share a column, and every fact is asked again after the whole stack of edits.
"""
