-- Count the jobs of a queue.
--
-- KEYS[1]  the queue
-- Returns how many jobs wait or run, how many of them are due and wait, and the ms for which the oldest of these has been
-- due (or false).
local queue = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- A stock client's abort sets the score of a job to 1, and other software may write any score.
local LEAST = 1000000000000
local oldest = redis.call('ZRANGEBYSCORE', queue, LEAST, now, 'WITHSCORES', 'LIMIT', 0, 1)
return {
    redis.call('ZCARD', queue),
    redis.call('ZCOUNT', queue, '-inf', now),
    oldest[2] and math.floor(now - oldest[2]) or false,
}
