-- Queue the jobs of cron slots, each slot once, although several workers may call this for the same slot.
--
-- KEYS[1], ARGV[1], ARGV[2]: see new_jobs.lua, which is put before this script
-- ARGV[4]  ms that a job may wait
-- then for each slot, oldest first: series, slot in ms since the epoch, id, payload ('' to record the slot only), and '1'
-- to queue the job only if its id is free, else '0'
-- Returns for each slot 1, or 0 if this slot or a later one of its series was passed before.
local replies, any = {}, false
for i = 5, #ARGV, 5 do
    local series, slot, id, payload, if_free = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
    local last = redis.call('HGET', prefix .. 'slots', series)
    local due = not last or (tonumber(last) or 0) < tonumber(slot)
    if due then
        redis.call('HSET', prefix .. 'slots', series, slot)
        if payload ~= '' and (if_free == '0' or not is_taken(id)) then
            redis.call('SET', prefix .. 'job:' .. id, payload, 'PX', ARGV[4])
            redis.call('ZADD', queue, slot, id)
            if if_free == '1' and aborts then redis.pcall('ZREM', abort, id) end
            any = true
        end
    end
    replies[#replies + 1] = due and 1 or 0
end
if any then redis.call('PUBLISH', ARGV[2], '1') end
return replies
