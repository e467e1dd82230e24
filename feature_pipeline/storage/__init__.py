"""The database: the write contract, the reads, the ledger and the migrations.

In here is everything that speaks SQL. What a table is lives in `schemas`, what is in it is computed
in `features`; Redis is the business of `online`.
"""
