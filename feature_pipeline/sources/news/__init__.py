"""News: feeds of publishers (`feeds.py`), and the search APIs GNews and NewsAPI.

Each asks in its own way; what is made of an article is the same for all (`articles.py`). Whether a
story was told before, here or by another provider, is judged where it is written
(`storage/twins.py`).
"""
