"""One model on several devices: processes, the collective Reducer, the inference engine."""
