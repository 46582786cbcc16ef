"""The demo: from a text file to a Kraken model answering on two devices, beside its twin."""
