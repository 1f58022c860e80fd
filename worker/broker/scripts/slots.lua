-- Queue the jobs of cron slots, each slot once, although several workers may call this for the same slot.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  channel that wakes idle workers     ARGV[3]  ms that a job may wait
-- then for each slot, oldest first: task, slot in ms since the epoch, id, payload ('' to record the slot only)
-- Returns for each slot 1, or 0 if this slot or a later one of its task was queued before.
local queue, prefix, expires = KEYS[1], ARGV[1], ARGV[3]
local replies, any = {}, false
for i = 4, #ARGV, 4 do
    local task, slot, id, payload = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    local last = redis.call('HGET', prefix .. 'slots', task)
    local due = not last or (tonumber(last) or 0) < tonumber(slot)
    if due then
        redis.call('HSET', prefix .. 'slots', task, slot)
        if payload ~= '' then
            redis.call('SET', prefix .. 'job:' .. id, payload, 'PX', expires)
            redis.call('ZADD', queue, slot, id)
            any = true
        end
    end
    replies[#replies + 1] = due and 1 or 0
end
if any then redis.call('PUBLISH', ARGV[2], '1') end
return replies
