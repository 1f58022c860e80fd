-- Put jobs into the queue that the ledger says are to run, unless they are there: a job that has lost its payload, or
-- its place in the queue, gets it back. A kept result is that of an earlier run, and goes.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  channel that wakes idle workers
-- then for each job: id, payload, delay in ms ('' where due is given), due in ms since the epoch ('' for the delay),
-- ms that it may wait past its due time
-- Returns for each job 1, or 0 where Redis had it.
local queue, prefix = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local LONGEST = 100 * 365 * 86400 * 1000  -- ms; SET takes no expiry without end

local published, any = {}, false
for i = 3, #ARGV, 5 do
    local id, payload, delay, due, patience = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
    local job = prefix .. 'job:' .. id
    local has_payload, place = redis.call('EXISTS', job) == 1, redis.call('ZSCORE', queue, id)
    if has_payload and place then
        published[#published + 1] = 0
    else
        local score = due ~= '' and tonumber(due) or now + tonumber(delay)
        local wait = math.max(score - now, 0) + tonumber(patience)
        if not has_payload then
            redis.call('SET', job, payload, 'PX', string.format('%.0f', math.max(math.min(wait, LONGEST), 1)))
        end
        if not place then redis.call('ZADD', queue, string.format('%.0f', score), id) end
        redis.call('DEL', prefix .. 'result:' .. id)
        redis.pcall('ZREM', prefix .. 'abort', id)
        if redis.pcall('GET', prefix .. 'in-progress:' .. id) == 'ended' then
            redis.call('DEL', prefix .. 'in-progress:' .. id)  -- a tombstone: see finish.lua
        end
        published[#published + 1] = 1
        any = true
    end
end
if any then redis.call('PUBLISH', ARGV[2], '1') end
return published
