-- What enqueue.lua and publish.lua begin with: how new jobs are given, their times, and their way into an id.
--
-- KEYS[1]  the queue: a sorted set of ids by due time
-- ARGV[1]  prefix of all other keys     ARGV[2]  channel that wakes idle workers     ARGV[3]  '1' to look for workers
-- then for each job: id, payload, and when: 'in 500 86400000' is in 500 ms, and then it may wait for a day; 'at' is followed
-- by ms since the epoch instead; one that was due before has its place there, and waits from now
local queue, prefix = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local LONGEST = 100 * 365 * 86400 * 1000  -- ms; SET takes no expiry without end

-- An abort that came before a job was meant for an earlier one of its id.
local abort = prefix .. 'abort'
local aborts = redis.call('EXISTS', abort) == 1

-- The job's score, and the ms after which its payload expires.
local function times(when)
    local from, moment, expires = string.match(when, '^(%a+) (%S+) (%S+)$')
    local due = (from == 'in' and now or 0) + tonumber(moment)
    local wait = math.max(due - now, 0) + tonumber(expires)
    return string.format('%.0f', due), string.format('%.0f', math.max(math.min(wait, LONGEST), 1))
end

-- Let the result of an aborted job make way: it goes where only those look who ask for that very job. Returns whether it
-- did, and whether there was any result.
local function set_aside(id, result)
    local head = redis.pcall('GETRANGE', result, 0, 31)
    local aborted = type(head) == 'string' and string.match(head, '^{"aborted":(%d+),')  -- see worker/message.py
    if aborted then redis.call('RENAME', result, prefix .. 'aborted:' .. id .. ':' .. aborted) end
    return aborted, head ~= ''
end

-- 1, or 0 where no worker serves the queue: one that is well, one that lives, or a stock one.
local function is_served()
    local served = redis.pcall('EXISTS', queue .. ':health-checks', queue .. ':tasks', queue .. ':health-check')
    return type(served) == 'number' and served or 1  -- a producer may not be allowed to look
end

