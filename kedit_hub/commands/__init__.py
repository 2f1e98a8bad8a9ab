"""The commands of `kedit`, one file per thing a person wants to do; cli.py is the table of them.

Law: a command reads its arguments, calls one public function, and prints what came back. Libraries are imported inside
the commands that need them, so that help and usage errors are answered at once.
"""
