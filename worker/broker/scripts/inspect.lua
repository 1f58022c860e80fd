-- Read all that shows why a job does not run. Nothing here takes longer for a longer queue.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  id
-- Returns the time; the job's score (or false), and how many jobs of the queue have a lower one; its payload (or false),
-- result (or false) and lease (or false), and the ms for which the lease holds; when an abort was requested (or false);
-- its entry among the claims (or false); failed tries (or false); the copy of the queue's pause (or false); the tasks
-- that live workers of the queue know; and 1 if a worker, perhaps a stock one, has a health record.
local queue, prefix, id = KEYS[1], ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function text(reply)
    return type(reply) == 'string' and reply or false
end

local holder = prefix .. 'in-progress:' .. id
return {
    now,
    redis.call('ZSCORE', queue, id),
    redis.call('ZRANK', queue, id),
    text(redis.pcall('GET', prefix .. 'job:' .. id)),
    text(redis.pcall('GET', prefix .. 'result:' .. id)),
    text(redis.pcall('GET', holder)),
    redis.call('PTTL', holder),
    text(redis.pcall('ZSCORE', prefix .. 'abort', id)),
    text(redis.pcall('HGET', prefix .. 'started', id)),
    text(redis.pcall('GET', prefix .. 'retry:' .. id)),
    text(redis.pcall('GET', queue .. ':paused')),
    redis.call('ZRANGEBYSCORE', queue .. ':tasks', '(' .. now, '+inf'),
    redis.call('EXISTS', queue .. ':health-check'),
}
