"""The model floor: loading a base, finding its editable linear maps, token positions, and signals at named modules."""
