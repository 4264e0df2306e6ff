"""Judges: questions.py asks, client.py or batches.py brings replies, replies.py reads, ratings.py keeps."""
