-- Ask for a job to be aborted: one that waits is made due at once, so that a worker ends it; one that runs is cancelled
-- by the worker that runs it.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  channel that wakes idle workers     ARGV[3]  id
-- ARGV[4]  when the job was enqueued, in ms since the epoch; '' means whichever job has the id
-- Returns 1, or 0 where there is no such job: none has the id, or another one has it by now.
local queue, prefix, id, enqueued_at = KEYS[1], ARGV[1], ARGV[3], ARGV[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- Workers take an abort that is older than the job for one of an earlier job of this id, which a stock client's may be.
-- This one is not, and must not pass for it where the producer's clock, which dates the job, is ahead.
local AHEAD = 12 * 60 * 60 * 1000
if not redis.call('ZSCORE', queue, id) then return 0 end

-- A payload ends with its enqueue time: see worker/message.py. Stock producers write it there, too.
local tail = redis.pcall('GETRANGE', prefix .. 'job:' .. id, -48, -1)
tail = type(tail) == 'string' and tail or ''
local found = string.match(tail, ',"et":(%d+)}%s*$') or string.match(tail, ',"et":(%d+),"ledger":true}%s*$')
-- Where the payload is lost, nothing says that it is another job.
if enqueued_at ~= '' and tail ~= '' and found ~= enqueued_at then return 0 end

redis.call('ZADD', prefix .. 'abort', string.format('%.0f', math.max(now + AHEAD, tonumber(found) or 0)), id)
local holder = redis.pcall('GET', prefix .. 'in-progress:' .. id)
if not holder or holder == 'ended' then  -- nobody runs it: see finish.lua
    redis.call('ZADD', queue, now, id)
    redis.call('PUBLISH', ARGV[2], '1')
end
return 1
