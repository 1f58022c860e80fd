-- List or count the jobs of a part of the queue that wait, and were enqueued before a time.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  how many jobs of the queue are skipped     ARGV[3]  how many are read
-- ARGV[4]  the time, in ms since the epoch; '' to count the jobs of any time
-- Returns how many jobs were read, then the ids of those that wait, or their number.
local queue, prefix, first, limit, before = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local ids = redis.call('ZRANGE', queue, first, first + limit - 1)
local waiting, counted = { #ids }, 0
local holders = {}
for i, id in ipairs(ids) do holders[i] = prefix .. 'in-progress:' .. id end
local held = #ids > 0 and redis.call('MGET', unpack(holders))
for i, id in ipairs(ids) do
    local is_waiting = not held[i] or held[i] == 'ended'  -- no worker runs it: see finish.lua
    if is_waiting and not before then
        counted = counted + 1
    elseif is_waiting then
        -- A payload ends with its enqueue time: see worker/message.py. A job without one is taken for an old job.
        local tail = redis.pcall('GETRANGE', prefix .. 'job:' .. id, -48, -1)
        tail = type(tail) == 'string' and tail or ''
        local at = string.match(tail, ',"et":(%d+)}%s*$') or string.match(tail, ',"et":(%d+),"ledger":true}%s*$')
        if not at or tonumber(at) <= before then waiting[#waiting + 1] = id end
    end
end
if not before then waiting[2] = counted end
return waiting
