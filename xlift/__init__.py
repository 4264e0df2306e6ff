"""xlift: cross-lingual instruction fine-tuning, answered, rated and explained."""
