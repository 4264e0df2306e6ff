"""What is wrong with one model, or with the data it is tuned on, and what to try: `xlift diagnose`."""
