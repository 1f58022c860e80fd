-- Put jobs into a queue, each unless its id is taken: by a job that waits or runs, or by a result that is kept. The result
-- of an aborted job takes no id: it goes where only those look who ask for that very job.
--
-- KEYS[1]  the queue: a sorted set of ids by due time
-- ARGV[1]  prefix of all other keys     ARGV[2]  channel that wakes idle workers     ARGV[3]  '1' to look for workers
-- then for each job: id, payload, and when: 'in 500 86400000' is in 500 ms, and then it may wait for a day; 'at' is followed
-- by ms since the epoch instead; one that was due before has its place there, and waits from now
-- Returns for each job 1, or 0 where its id was taken; and then, if it was to look, 1, or 0 where no worker serves the
-- queue.
local queue, prefix = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local LONGEST = 100 * 365 * 86400 * 1000  -- ms; SET takes no expiry without end

-- An abort that came before a job was meant for an earlier one of its id.
local abort = prefix .. 'abort'
local aborts = redis.call('EXISTS', abort) == 1

-- Whether the id's kept result is an aborted job's, and has made way for a new job.
local function set_aside(id, result)
    local head = redis.pcall('GETRANGE', result, 0, 31)
    local aborted = type(head) == 'string' and string.match(head, '^{"aborted":(%d+),')  -- see worker/message.py
    if aborted then redis.call('RENAME', result, prefix .. 'aborted:' .. id .. ':' .. aborted) end
    return aborted
end

local added, scores = {}, {}
local last_when, score, expiry  -- jobs that come together are mostly due together
for i = 4, #ARGV, 3 do
    local id, payload, when = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local job, holder, result = prefix .. 'job:' .. id, prefix .. 'in-progress:' .. id, prefix .. 'result:' .. id
    local taken = redis.call('EXISTS', job, result, holder)
    if taken == 1 and redis.pcall('GET', holder) == 'ended' then taken = 0 end  -- a tombstone: see finish.lua
    if taken == 1 and set_aside(id, result) then taken = 0 end
    if taken > 0 then
        added[#added + 1] = 0
    else
        if when ~= last_when then
            last_when = when
            local from, moment, patience = string.match(when, '^(%a+) (%S+) (%S+)$')
            local due = (from == 'in' and now or 0) + tonumber(moment)
            local wait = math.max(due - now, 0) + tonumber(patience)
            score = string.format('%.0f', due)
            expiry = string.format('%.0f', math.max(math.min(wait, LONGEST), 1))
        end
        redis.call('SET', job, payload, 'PX', expiry)
        if aborts then redis.pcall('ZREM', abort, id) end
        scores[#scores + 1] = score
        scores[#scores + 1] = id
        added[#added + 1] = 1
    end
end
if #scores > 0 then
    redis.call('ZADD', queue, unpack(scores))
    redis.call('PUBLISH', ARGV[2], '1')
end
if ARGV[3] ~= '' then
    -- One that is well, one that lives, or a stock one.
    local served = redis.pcall('EXISTS', queue .. ':health-checks', queue .. ':tasks', queue .. ':health-check')
    added[#added + 1] = type(served) == 'number' and served or 1  -- a producer may not be allowed to look
end
return added
