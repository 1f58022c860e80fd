-- Take leases again that Redis has lost (a failover, a flush) while their jobs went on, with the jobs themselves.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  lease in ms     ARGV[3]  ms that a job may wait
-- then for each job: id, token, score, payload ('' where there was none)
-- Returns for each job 1, or 0 where somebody holds it by now, or it has ended.
local queue, prefix, lease, patience = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local replies = {}
for i = 4, #ARGV, 4 do
    local id, token, score, payload = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    local taken = redis.call('SET', prefix .. 'in-progress:' .. id, token .. ':' .. score, 'PX', lease, 'NX')
    if taken then
        if payload ~= '' then
            redis.call('SET', prefix .. 'job:' .. id, payload, 'PX', patience, 'NX')
        end
        redis.call('ZADD', queue, now + lease, id)
    end
    replies[#replies + 1] = taken and 1 or 0
end
return replies
