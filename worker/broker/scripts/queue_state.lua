-- Read the state of a queue. No part of it takes longer for a longer queue.
--
-- KEYS[1]  the queue
-- Returns the time, the number of jobs, how many are due, the score of the first due job (or false), the copy of the
-- pause (or false), how many of the due jobs start although the queue is paused, and the tasks that live workers know.
local queue = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local copy = redis.pcall('GET', queue .. ':paused')
copy = type(copy) == 'string' and copy or false
local last_score = copy and (string.match(copy, '^%d+') or '-inf') or now
-- A stock client's abort sets the score of a job to 1, and other software may write any score.
local LEAST = 1000000000000
local first = redis.call('ZRANGEBYSCORE', queue, LEAST, now, 'WITHSCORES', 'LIMIT', 0, 1)
return {
    now,
    redis.call('ZCARD', queue),
    redis.call('ZCOUNT', queue, '-inf', now),
    first[2] or false,
    copy,
    redis.call('ZCOUNT', queue, '-inf', last_score),
    redis.call('ZRANGEBYSCORE', queue .. ':tasks', '(' .. now, '+inf'),
}
