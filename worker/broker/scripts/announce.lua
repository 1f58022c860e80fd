-- Record for a while which tasks a worker of the queue knows. Return the last command to the worker, or false.
--
-- KEYS[1]  the queue
-- ARGV[1]  key of the tasks that live workers know     ARGV[2]  ms for which this holds
-- ARGV[3]  key of the worker's command     then the tasks
local key, lifetime = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 4, #ARGV do redis.call('ZADD', key, now + lifetime, ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
redis.call('PEXPIRE', key, lifetime)
local command = redis.pcall('GET', ARGV[3])
return type(command) == 'string' and command
