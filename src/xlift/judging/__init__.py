"""Judges: questions.py asks, servers/client.py or batches.py brings replies, replies.py reads, ratings.py keeps."""
