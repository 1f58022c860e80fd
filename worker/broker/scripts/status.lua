-- Read all that Redis knows of one job.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  id     ARGV[3]  when it was enqueued ('' if unknown)
-- Returns the payload (or false), the result (or false), 1 if it is in progress, its due time (or false), the time; and
-- the result of the job of this id with that enqueue time, if it was aborted and the id is used again (or false).
local prefix, id, enqueued_at = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')

local function text(reply)
    return type(reply) == 'string' and reply or false
end

local holder = text(redis.pcall('GET', prefix .. 'in-progress:' .. id))
return {
    text(redis.pcall('GET', prefix .. 'job:' .. id)),
    text(redis.pcall('GET', prefix .. 'result:' .. id)),
    holder and holder ~= 'ended' and 1 or 0,  -- or a tombstone: see finish.lua
    redis.call('ZSCORE', KEYS[1], id),
    time[1] * 1000 + math.floor(time[2] / 1000),
    enqueued_at ~= '' and text(redis.pcall('GET', prefix .. 'aborted:' .. id .. ':' .. enqueued_at)),
}
