"""What workers measure: counts of jobs by time, workers' records, and Prometheus' form of both.

The engine, the administration, the dashboard and the command line may import it. It imports the broker and the ledger,
never the engine. Decisions about jobs must not be put here.
"""
