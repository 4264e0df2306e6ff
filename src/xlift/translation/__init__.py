"""`xlift translate`: instruction data and prompts in other languages, sentence by sentence, with a gate for each."""
