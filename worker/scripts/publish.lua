-- Put jobs into the queue that the ledger says are to run, unless they are there: a job that has lost its payload, or
-- its place in the queue, gets it back. A kept result is that of an earlier run, and goes; that of an aborted job goes where
-- only those look who ask for that very job.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  channel that wakes idle workers     ARGV[3]  '1' to look for workers
-- then for each job: id, payload, and when: 'in 500 86400000' is in 500 ms, and then it may wait for a day; 'at' is followed
-- by ms since the epoch instead; one that was due before has its place there, and waits from now
-- Returns for each job 1, or 0 where Redis had it; and then, if it was to look, 1, or 0 where no worker serves the
-- queue.
local queue, prefix = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local LONGEST = 100 * 365 * 86400 * 1000  -- ms; SET takes no expiry without end

local abort = prefix .. 'abort'
local aborts = redis.call('EXISTS', abort) == 1

local function make_way(id, result)
    local head = redis.pcall('GETRANGE', result, 0, 31)
    if head == '' then return end
    local aborted = type(head) == 'string' and string.match(head, '^{"aborted":(%d+),')  -- see worker/message.py
    if aborted then redis.call('RENAME', result, prefix .. 'aborted:' .. id .. ':' .. aborted)
    else redis.call('DEL', result) end
end

local published, any = {}, false
local last_when, score, expiry  -- jobs that come together are mostly due together
for i = 4, #ARGV, 3 do
    local id, payload, when = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local job = prefix .. 'job:' .. id
    local has_payload, place = redis.call('EXISTS', job) == 1, redis.call('ZSCORE', queue, id)
    if has_payload and place then
        published[#published + 1] = 0
    else
        if when ~= last_when then
            last_when = when
            local from, moment, patience = string.match(when, '^(%a+) (%S+) (%S+)$')
            local due = (from == 'in' and now or 0) + tonumber(moment)
            local wait = math.max(due - now, 0) + tonumber(patience)
            score = string.format('%.0f', due)
            expiry = string.format('%.0f', math.max(math.min(wait, LONGEST), 1))
        end
        if not has_payload then redis.call('SET', job, payload, 'PX', expiry) end
        if not place then redis.call('ZADD', queue, score, id) end
        make_way(id, prefix .. 'result:' .. id)
        if aborts then redis.pcall('ZREM', abort, id) end
        if redis.pcall('GET', prefix .. 'in-progress:' .. id) == 'ended' then
            redis.call('DEL', prefix .. 'in-progress:' .. id)  -- a tombstone: see finish.lua
        end
        published[#published + 1] = 1
        any = true
    end
end
if any then redis.call('PUBLISH', ARGV[2], '1') end
if ARGV[3] ~= '' then
    -- One that is well, one that lives, or a stock one.
    local served = redis.pcall('EXISTS', queue .. ':health-checks', queue .. ':tasks', queue .. ':health-check')
    published[#published + 1] = type(served) == 'number' and served or 1  -- a producer may not be allowed to look
end
return published
