"""Editors that leave every weight as it is and put a memory beside it: GRACE, T-Patcher, CaliNET, WISE, SERAC, IKE."""
