"""The registry of the small project in `world`."""

from worker import cron, task


@task(name="mail.send_receipt", queue="mail")
async def send_receipt(order_id: int, to: str, locale: str) -> None: ...


@task(name="billing.charge")
async def charge(order_id: int, card_id: str, token: str) -> None: ...


@task(name="search.reindex")
async def reindex(product_id: int) -> dict[str, int]:
    return {"documents": product_id}


@task(name="reports.build", queue="reports")
async def build(month: str, rows: int) -> str:
    return f"reports/{month}.xlsx"


@cron("*/5 * * * *", name="cache.warm")
async def warm() -> None: ...


@cron("30 3 * * *", timezone="Europe/Berlin", name="reports.nightly")
async def nightly() -> None: ...


@cron("0 8 * * 1", timezone="America/New_York", name="mail.digest")
async def digest() -> None: ...


TASKS = tuple(
    f"{__name__}.{name}" for name in ("send_receipt", "charge", "reindex", "build", "warm", "nightly", "digest")
)
