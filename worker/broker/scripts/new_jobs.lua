-- The common beginning of enqueue.lua, publish.lua and slots.lua: the arguments of new jobs, their times, rules for ids.
--
-- KEYS[1]  the queue: a sorted set of ids by due time
-- ARGV[1]  prefix of all other keys     ARGV[2]  channel that wakes idle workers
-- ARGV[3]  '1' to check whether a worker serves the queue
-- then for each job: id, payload, and its times: 'in 500 86400000' is due in 500 ms, and may wait for a day after that.
-- 'at' is followed by ms since the epoch instead. A job that was due in the past keeps that score; it may
-- wait from now on.
local queue, prefix = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local LONGEST = 100 * 365 * 86400 * 1000  -- ms; SET takes no infinite expiry

-- An abort that is older than a job was meant for an earlier job of its id.
local abort = prefix .. 'abort'
local aborts = redis.call('EXISTS', abort) == 1

-- Return the job's score, and the ms after which its payload expires. The jobs of one call mostly have the same times.
local last_when, score, expiry
local function times(when)
    if when ~= last_when then
        local from, moment, expires = string.match(when, '^(%a+) (%S+) (%S+)$')
        local due = (from == 'in' and now or 0) + tonumber(moment)
        local wait = math.max(due - now, 0) + tonumber(expires)
        last_when, score = when, string.format('%.0f', due)
        expiry = string.format('%.0f', math.max(math.min(wait, LONGEST), 1))
    end
    return score, expiry
end

-- Move the result of an aborted job out of the way, to a key by id and enqueue time. Returns whether it was moved, and
-- whether there was any result.
local function set_aside(id, result)
    local head = redis.pcall('GETRANGE', result, 0, 31)
    local aborted = type(head) == 'string' and string.match(head, '^{"aborted":(%d+),')  -- see worker/message.py
    if aborted then redis.call('RENAME', result, prefix .. 'aborted:' .. id .. ':' .. aborted) end
    return aborted, head ~= ''
end

-- Return whether an id is taken: by a job that waits or runs, or by a kept result. The result of an aborted job is set
-- aside.
local function is_taken(id)
    local holder, result = prefix .. 'in-progress:' .. id, prefix .. 'result:' .. id
    local taken = redis.call('EXISTS', prefix .. 'job:' .. id, result, holder)
    if taken == 1 and redis.pcall('GET', holder) == 'ended' then taken = 0 end  -- a tombstone: see finish.lua
    if taken == 1 and set_aside(id, result) then taken = 0 end
    return taken > 0
end

-- Return 1, or 0 if no worker serves the queue: neither a health record, nor known tasks, nor a stock worker's record.
local function is_served()
    local served = redis.pcall('EXISTS', queue .. ':health-checks', queue .. ':tasks', queue .. ':health-check')
    return type(served) == 'number' and served or 1  -- a producer may have no right to read these keys
end

