"""The processes of a model on several devices: their start, cores, failures and shares."""
