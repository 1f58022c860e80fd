"""What people see and do: queues, workers, schedules and jobs, for the command line and the dashboard.

`worker.cli` and `worker.dashboard` may import it. It imports the client, the broker, the ledger, the metrics and the
public modules, never the engine. Output, and decisions about who may act, must not be put here.

Each action takes an `actor`, the name of the person who acts. It writes an audit row with that name.
"""
