"""What the workers of the shop run."""

TASKS = (
    "shop.shipping.ship",
    "shop.shipping.notify",
    "shop.shipping.remind",
)
LIFESPAN = "shop.carrier.lifespan"
