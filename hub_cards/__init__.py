"""Model cards, and what else a RATS repository on the Hub needs."""
