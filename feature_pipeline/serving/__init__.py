"""Answers about features: values by name at any past moment, and why they are what they are.

Knows storage, online and features; nothing here writes a table or knows Dagster.
"""
