-- Put jobs into a queue, each unless its id is taken: by a job that waits or runs, or by a result that is kept.
--
-- KEYS[1]  the queue: a sorted set of ids by due time
-- ARGV[1]  prefix of all other keys     ARGV[2]  channel that wakes idle workers
-- then for each job: id, payload, delay in ms ('' where due is given), due in ms since the epoch ('' for the delay),
-- ms that it may wait past its due time
-- Returns for each job 1, or 0 where its id was taken.
local queue, prefix = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local LONGEST = 100 * 365 * 86400 * 1000  -- ms; SET takes no expiry without end

-- An abort that came before a job was meant for an earlier one of its id.
local abort = prefix .. 'abort'
local aborts = redis.call('EXISTS', abort) == 1
local added, scores = {}, {}
for i = 3, #ARGV, 5 do
    local id, payload, delay, due, patience = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
    local job, holder = prefix .. 'job:' .. id, prefix .. 'in-progress:' .. id
    local taken = redis.call('EXISTS', job, prefix .. 'result:' .. id, holder)
    if taken == 1 and redis.pcall('GET', holder) == 'ended' then taken = 0 end  -- a tombstone: see finish.lua
    if taken > 0 then
        added[#added + 1] = 0
    else
        local score = due ~= '' and tonumber(due) or now + tonumber(delay)
        local wait = math.max(score - now, 0) + tonumber(patience)
        redis.call('SET', job, payload, 'PX', string.format('%.0f', math.max(math.min(wait, LONGEST), 1)))
        if aborts then redis.pcall('ZREM', abort, id) end
        scores[#scores + 1] = string.format('%.0f', score)
        scores[#scores + 1] = id
        added[#added + 1] = 1
    end
end
if #scores > 0 then
    redis.call('ZADD', queue, unpack(scores))
    redis.call('PUBLISH', ARGV[2], '1')
end
return added
